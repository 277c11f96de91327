# The peer asks for at least one connection of its own.
package nsm

default valid = false

valid {
    own := input.spiffe_id_connection_map[input.service_spiffe_id][_]
    own == input.selector_connection_ids[_]
}
