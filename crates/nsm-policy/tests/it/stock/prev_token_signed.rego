# The TLS client signed the token of the segment before the index.
package nsm

default valid = false

position := object.get(input, "index", 0)

valid {
    position > 0
    before := input.path_segments[position - 1]
    io.jwt.verify_es256(before.token, input.auth_info.certificate)
}
