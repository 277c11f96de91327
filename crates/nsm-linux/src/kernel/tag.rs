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

/// The owner as the alias spells it: `nsm:<hop>:<connection>:<generation>@<underlay>`. The underlay is the inode of the
/// network namespace in which the hop lives; it decides nothing but whose links a hop may look through for forgotten ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    hop: String,
    connection: String,
    generation: u64,
    underlay: Option<u64>,
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
    /// It was ours and is out of use; whoever took it out ended before it was deleted.
    Doomed,
    /// Somebody else's.
    Foreign,
}

impl Tag {
    pub(super) fn of(owner: &Owner, underlay: Option<u64>) -> Tag {
        let (hop, connection) = (spelled(owner.hop.as_str()), spelled(owner.connection.as_str()));
        Tag { hop, connection, generation: owner.generation, underlay }
    }
    fn parse(alias: &str) -> Option<Tag> {
        let mut parts = alias.split(':');
        let (prefix, hop, connection, number) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let whole = prefix == PREFIX && parts.next().is_none();
        let (generation, underlay) = number.split_once('@').map_or((number, None), |(generation, underlay)| (generation, Some(underlay)));
        let underlay = underlay.map(str::parse).transpose().ok()?;
        whole.then_some(Tag { hop: hop.into(), connection: connection.into(), generation: generation.parse().ok()?, underlay })
    }
    /// What a link of a former process of this tag's hop, in this underlay, calls its connection; `None` for any other link.
    pub(super) fn former(&self, link: &Link) -> Option<String> {
        let there = Tag::parse(&link.alias).filter(|_| link.group != DOOMED)?;
        let same = there.hop == self.hop && there.underlay.is_some() && there.underlay == self.underlay;
        (same && there.generation < self.generation).then_some(there.connection)
    }
    /// The turnstile at which jobs of this connection follow each other.
    pub(super) fn place(&self) -> usize {
        hash(&[&self.connection]) as usize
    }
    /// The same hop's tag for another connection, as an alias spells that.
    pub(super) fn with_connection(&self, spelled: String) -> Tag {
        Tag { connection: spelled, ..self.clone() }
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
            Some(_) if link.group == DOOMED => Whose::Doomed,
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
        write!(f, "{PREFIX}:{}:{}:{}", self.hop, self.connection, self.generation)?;
        self.underlay.map_or(Ok(()), |underlay| write!(f, "@{underlay}"))
    }
}

/// The id itself where it is short and plain, otherwise its hash behind a sign that no plain id holds.
pub(super) fn spelled(id: &str) -> String {
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
        Tag::of(&Owner { hop: HopName::new(hop).unwrap(), connection: ConnectionId::new(connection).unwrap(), generation }, Some(7))
    }
    fn tagged(alias: &str, group: u32) -> Link {
        Link { alias: alias.into(), group, ..Link::default() }
    }

    #[test]
    fn the_alias_tells_the_owner_and_fits() {
        assert_eq!(tag("fwd-1", "0b-7@x", 3).to_string(), "nsm:fwd-1:0b-7@x:3@7");
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
            ("nsm:fwd:c:5@8", mine.group(), Whose::Ours),
            ("nsm:fwd:c:5@", mine.group(), Whose::Foreign),
            ("nsm:fwd:c:4", mine.group(), Whose::Older),
            ("nsm:fwd:c:6", mine.group(), Whose::Newer),
            ("nsm:fwd:d:5", mine.group(), Whose::Foreign),
            ("nsm:other:c:5", 0, Whose::Foreign),
            ("", mine.group(), Whose::Older),
            ("", 0, Whose::Foreign),
            ("uplink", mine.group(), Whose::Foreign),
            ("nsm:fwd:c:5", DOOMED, Whose::Doomed),
            ("nsm:fwd:d:5", DOOMED, Whose::Foreign),
            ("", DOOMED, Whose::Foreign),
        ] {
            assert_eq!(mine.whose(&tagged(alias, group)), whose, "{alias:?} {group:x}");
        }
    }

    #[test]
    fn only_links_of_former_processes_of_the_same_place_are_looked_through() {
        let mine = tag("fwd", "any", 5);
        for (alias, group, connection) in [
            ("nsm:fwd:c:4@7", mine.group(), Some("c")),
            ("nsm:fwd:c:5@7", 0, None),
            ("nsm:fwd:c:6@7", 0, None),
            ("nsm:fwd:c:4@8", 0, None),
            ("nsm:fwd:c:4", 0, None),
            ("nsm:other:c:4@7", 0, None),
            ("nsm:fwd:c:4@7", DOOMED, None),
            ("", mine.group(), None),
        ] {
            assert_eq!(mine.former(&tagged(alias, group)).as_deref(), connection, "{alias:?}");
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
