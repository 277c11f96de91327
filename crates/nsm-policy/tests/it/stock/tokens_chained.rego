# Whoever a token was made for made the next one.
package nsm

default valid = false

claims[at] = body {
    body := io.jwt.decode(input.path_segments[at].token)[1]
}

# Audiences that agree and audiences that do not must not occur together.
joined[at] {
    made := claims[at]
    next := claims[at + 1].sub
    answers := {answer | audience := made.aud[_]; answer := audience == next}
    answers == {true}
}

valid {
    count(input.path_segments) == 1
}

valid {
    pairs := count(input.path_segments) - 1
    pairs > 0
    count(joined) == pairs
}
