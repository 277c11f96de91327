# Every segment has a token that can be read.
package nsm

default valid = false

readable[at] {
    segment := input.path_segments[at]
    count(io.jwt.decode(segment.token)) == 3
}

valid {
    count(readable) == count(input.path_segments)
}
