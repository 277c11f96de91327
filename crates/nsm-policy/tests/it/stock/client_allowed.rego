# The name is free, or belongs to whoever registers it.
package nsm

default valid = false

taken {
    input.resource_path_ids_map[input.resource_name]
}

valid {
    is_string(input.resource_name)
    not taken
}

valid {
    owner := input.resource_path_ids_map[input.resource_name][0]
    owner == input.resource_id
}
