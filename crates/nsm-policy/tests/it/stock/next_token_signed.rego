# The TLS server signed the token of the segment after the index.
package nsm

default valid = false

position := object.get(input, "index", 0)

valid {
    after := input.path_segments[position + 1]
    io.jwt.verify_es256(after.token, input.auth_info.certificate)
}
