//! Whose a link is, written into the link: a group number from birth, an alias for people, an alternative name for finding it.

use crate::link::Link;
use nsm_hop::kernel::{IfName, Owner};
use std::fmt;

const PREFIX: &str = "nsm";
/// An id longer than this is replaced by its hash: the kernel's alias holds 255 bytes, of which two ids share most.
const MAX_ID_BYTES: usize = 96;
/// High bits of the group number of every link of a hop.
const GROUP: u32 = 0x4E00_0000;
const GROUP_MASK: u32 = 0x00FF_FFFF;
/// The group of links that are about to be deleted together.
pub(super) const DOOMED: u32 = GROUP | GROUP_MASK;

/// The owner as the alias spells it: `nsm:<hop>:<connection>:<generation>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    hop: String,
    connection: String,
    pub(super) generation: u64,
}

/// What a link is to an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// Ours, of this generation.
    Ours,
    /// Ours, of an older process, or one that ended before it could write its tag.
    Older,
    /// Taken over by a newer process.
    Newer,
    /// Somebody else's.
    Foreign,
}

impl Tag {
    pub(super) fn of(owner: &Owner) -> Tag {
        Tag { hop: spelled(owner.hop.as_str()), connection: spelled(owner.connection.as_str()), generation: owner.generation }
    }
    fn parse(alias: &str) -> Option<Tag> {
        let mut parts = alias.split(':');
        let (prefix, hop, connection, generation) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let whole = prefix == PREFIX && parts.next().is_none();
        whole.then_some(Tag { hop: hop.into(), connection: connection.into(), generation: generation.parse().ok()? })
    }
    /// The group number at birth; it marks the link even if the process ends before the alias is set.
    pub(super) fn group(&self) -> u32 {
        let low = hash(&[&self.hop, &self.connection]) as u32 & GROUP_MASK;
        GROUP | low.min(GROUP_MASK - 1)
    }
    /// A second name that follows from the owner and the wanted name, so that a renamed link is found at once.
    pub(super) fn second_name(&self, name: &IfName) -> String {
        format!("{PREFIX}.{:032x}", hash(&[&self.hop, &self.connection, name.as_str()]))
    }
    /// What marks a filter of this owner.
    pub(super) fn cookie(&self) -> [u8; 16] {
        hash(&[&self.hop, &self.connection]).to_be_bytes()
    }
    /// What a link is to this owner.
    pub(super) fn whose(&self, link: &Link) -> Whose {
        match Tag::parse(&link.alias) {
            Some(there) if (&there.hop, &there.connection) != (&self.hop, &self.connection) => Whose::Foreign,
            _ if link.group == DOOMED => Whose::Foreign, // on its way out
            Some(there) if there.generation == self.generation => Whose::Ours,
            Some(there) if there.generation < self.generation => Whose::Older,
            Some(_) => Whose::Newer,
            None if link.alias.is_empty() && link.group == self.group() => Whose::Older,
            None => Whose::Foreign,
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}:{}:{}:{}", self.hop, self.connection, self.generation)
    }
}

/// The id itself where it is short and plain, otherwise its hash behind a sign that no plain id holds.
fn spelled(id: &str) -> String {
    let plain = id.len() <= MAX_ID_BYTES && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._@-".contains(&byte));
    if plain { id.to_owned() } else { format!("~{:032x}", hash(&[id])) }
}

/// FNV-1a over the parts and their borders: the same in every process and version, as what is in the kernel outlives both.
pub(super) fn hash(parts: &[&str]) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(BASIS, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nsm_api::{ConnectionId, HopName};

    fn tag(hop: &str, connection: &str, generation: u64) -> Tag {
        Tag::of(&Owner { hop: HopName::new(hop).unwrap(), connection: ConnectionId::new(connection).unwrap(), generation })
    }
    fn tagged(alias: &str, group: u32) -> Link {
        Link { alias: alias.into(), group, ..Link::default() }
    }

    #[test]
    fn the_alias_tells_the_owner_and_fits() {
        assert_eq!(tag("fwd-1", "0b-7@x", 3).to_string(), "nsm:fwd-1:0b-7@x:3");
        for strange in ["a:b", "söme", "with blank", &"x".repeat(200)] {
            let tag = tag(strange, strange, u64::MAX);
            assert!(tag.to_string().len() < 255 && tag.to_string().split(':').count() == 4, "{tag}");
            assert_eq!(Tag::parse(&tag.to_string()), Some(tag));
        }
        assert_ne!(tag("a:b", "c", 1).to_string(), tag("a", "b:c", 1).to_string());
    }

    #[test]
    fn a_link_belongs_to_whom_its_tag_says() {
        let mine = tag("fwd", "c", 5);
        for (alias, group, whose) in [
            ("nsm:fwd:c:5", mine.group(), Whose::Ours),
            ("nsm:fwd:c:4", mine.group(), Whose::Older),
            ("nsm:fwd:c:6", mine.group(), Whose::Newer),
            ("nsm:fwd:d:5", mine.group(), Whose::Foreign),
            ("nsm:other:c:5", 0, Whose::Foreign),
            ("", mine.group(), Whose::Older),
            ("", 0, Whose::Foreign),
            ("uplink", mine.group(), Whose::Foreign),
            ("nsm:fwd:c:5", DOOMED, Whose::Foreign),
        ] {
            assert_eq!(mine.whose(&tagged(alias, group)), whose, "{alias:?} {group:x}");
        }
    }

    #[test]
    fn what_is_written_into_the_kernel_never_changes() {
        let tag = tag("fwd", "c", 1);
        assert_eq!(hash(&["a"]), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964_u128.wrapping_mul(0x0100_0000_0000_0000_0000_013b));
        assert!(tag.group() & !GROUP_MASK == GROUP && tag.group() != DOOMED);
        assert!(tag.second_name(&IfName::new("nsm-1").unwrap()).len() < 128);
    }
}
