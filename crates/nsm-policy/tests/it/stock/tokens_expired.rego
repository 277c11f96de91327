# Every token ends later than now.
package nsm

default valid = false

seconds := time.now_ns() / 1000000000

good[at] {
    parts := io.jwt.decode(input.path_segments[at].token)
    parts[1].exp > seconds
}

valid {
    count(input.path_segments) - count(good) == 0
}
