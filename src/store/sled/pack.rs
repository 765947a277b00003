//! Index entries, many to a record of sled's. To sled each record costs memory for as long as it
//! exists, in the cache or not: a leaf of its tree holds 16 at most, and its table of pages some 500
//! bytes a leaf. Entries are short, have no value and are only ever read in ranges, so they are kept
//! like the leaves of a tree in packs: sorted, each pack under the lowest key that may be in it.
//!
//! Entries move to a higher pack when theirs is split, and never to a lower one: a pack goes only
//! once it is empty. That is what lets a scan go from pack to pack while others write.

use std::collections::{BTreeMap, BTreeSet};

use super::record::{take, unseal};
use crate::store::engine::Value;

/// A pack with more bytes than this is split. A change of one entry writes its pack anew: with 400, a
/// session that is opened alone took 1,962 bytes of the log, with 200 it takes 1,375, without packs
/// 1,174. Smaller ones take more memory.
const PACK_BYTES: usize = 200;

/// The pack that has `key`, if any has: its key, and the record.
pub(super) fn pack_of(db: &sled::Db, key: &[u8]) -> sled::Result<Option<(sled::IVec, sled::IVec)>> {
    db.range::<&[u8], _>(&key[..1]..=key).next_back().transpose()
}

/// The entries of the pack at `at`, in order; none when they cannot be read.
///
/// Each is written as what it has in common with the one before it, the first with the pack's key:
/// the length of that in a byte, the length of the rest in two, the rest.
pub(in crate::store) fn read(at: &[u8], mut packed: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut entries: Vec<Vec<u8>> = Vec::new();
    while !packed.is_empty() {
        let [common] = take(&mut packed)?;
        let len = usize::from(u16::from_be_bytes(take(&mut packed)?));
        let (rest, others) = packed.split_at_checked(len)?;
        let before = entries.last().map_or(at, Vec::as_slice);
        entries.push([before.get(..usize::from(common))?, rest].concat());
        packed = others;
    }
    Some(entries)
}

pub(super) fn write(at: &[u8], entries: &[Vec<u8>]) -> Value {
    let mut packed = Vec::new();
    let mut before = at;
    for entry in entries {
        let common = before.iter().zip(entry).take_while(|(a, b)| a == b).count();
        let common = u8::try_from(common).unwrap_or(u8::MAX);
        let rest = &entry[usize::from(common)..];
        // No key is longer than a record may be.
        let len = u16::try_from(rest.len()).unwrap_or(u16::MAX);
        packed.push(common);
        packed.extend_from_slice(&len.to_be_bytes());
        packed.extend_from_slice(rest);
        before = entry;
    }
    packed
}

/// Packs index entries that come in the order of their keys: for whoever has them one by one.
#[derive(Default)]
pub(in crate::store) struct Packer {
    at: Vec<u8>,
    entries: Vec<Vec<u8>>,
}

impl Packer {
    /// Goes on with the pack that begins at `at` and has nothing in it yet.
    pub(in crate::store) fn at(at: Vec<u8>) -> Self {
        Self { at, entries: Vec::new() }
    }

    /// The key of the pack that is not full yet, and its first entry.
    pub(in crate::store) fn pending(&self) -> Option<(&[u8], &[u8])> {
        self.entries.first().map(|first| (self.at.as_slice(), first.as_slice()))
    }

    /// Adds an entry. Gives the pack that is full, with its key.
    pub(in crate::store) fn push(&mut self, entry: Vec<u8>) -> Option<(Vec<u8>, Value)> {
        if self.at.first() != entry.first() {
            let full = self.finish();
            self.at = entry[..1].to_vec();
            self.entries.push(entry);
            return full;
        }
        self.entries.push(entry);
        if self.entries.len() < 2 || write(&self.at, &self.entries).len() <= PACK_BYTES {
            return None;
        }
        let next = self.entries.pop()?;
        let full =
            (std::mem::replace(&mut self.at, next.clone()), std::mem::take(&mut self.entries));
        self.entries.push(next);
        let packed = write(&full.0, &full.1);
        Some((full.0, packed))
    }

    /// The last pack, if there is one.
    pub(in crate::store) fn finish(&mut self) -> Option<(Vec<u8>, Value)> {
        let (at, entries) = (std::mem::take(&mut self.at), std::mem::take(&mut self.entries));
        let packed = write(&at, &entries);
        (!entries.is_empty()).then_some((at, packed))
    }
}

/// A pack in the making.
struct Pack {
    at: Vec<u8>,
    entries: BTreeSet<Vec<u8>>,
    changed: bool,
}

impl Pack {
    /// The pack that has `key`, or that it begins. Its first pack has the name of a kind itself, so
    /// that no key of the kind is below it.
    fn of(key: &[u8], found: Option<(sled::IVec, sled::IVec)>) -> Result<Self, String> {
        let Some((at, stored)) = found else {
            return Ok(Self { at: key[..1].to_vec(), entries: BTreeSet::new(), changed: false });
        };
        let (packed, _) = unseal(&at, &stored).ok_or("a record does not match its checksum")?;
        let entries = read(&at, packed).ok_or("a pack of index entries cannot be read")?;
        Ok(Self { at: at.to_vec(), entries: entries.into_iter().collect(), changed: false })
    }

    /// Adds the records that it becomes.
    fn finish(self, records: &mut BTreeMap<Vec<u8>, Option<Value>>) {
        let Self { at, entries, changed } = self;
        if !changed {
            return;
        }
        if entries.is_empty() {
            records.insert(at, None);
            return;
        }
        let entries: Vec<_> = entries.into_iter().collect();
        split(at, &entries, records);
    }
}

fn split(at: Vec<u8>, entries: &[Vec<u8>], records: &mut BTreeMap<Vec<u8>, Option<Value>>) {
    let packed = write(&at, entries);
    if packed.len() <= PACK_BYTES || entries.len() < 2 {
        records.insert(at, Some(packed));
        return;
    }
    let (low, high) = entries.split_at(entries.len() / 2);
    split(at, low, records);
    split(high[0].clone(), high, records);
}

/// Adds to `records` what the packs become when these entries, in the order of their keys, are put
/// or deleted.
pub(super) fn repack<'a>(
    db: &sled::Db,
    entries: impl Iterator<Item = (&'a Vec<u8>, bool)>,
    records: &mut BTreeMap<Vec<u8>, Option<Value>>,
) -> Result<(), String> {
    let mut open: Option<Pack> = None;
    for (key, put) in entries {
        let found = pack_of(db, key).map_err(|error| error.to_string())?;
        // In order, so that the entries of one pack follow each other.
        let at = found.as_ref().map_or(&key[..1], |(at, _)| &at[..]);
        if open.as_ref().is_none_or(|pack| pack.at != at) {
            let next = Pack::of(key, found)?;
            if let Some(pack) = open.replace(next) {
                pack.finish(records);
            }
        }
        if let Some(pack) = &mut open {
            let changed =
                if put { pack.entries.insert(key.clone()) } else { pack.entries.remove(key) };
            pack.changed |= changed;
        }
    }
    if let Some(pack) = open {
        pack.finish(records);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_in_order_reads_back_and_begins_with_the_kind() {
        let mut entries: Vec<Vec<u8>> =
            (0..500_u32).map(|n| [b"isubject/".as_slice(), &n.to_be_bytes()].concat()).collect();
        entries.extend((0..3_u8).map(|n| vec![b'x', n]));
        let mut packer = Packer::default();
        let mut packs: Vec<_> =
            entries.iter().filter_map(|entry| packer.push(entry.clone())).collect();
        packs.extend(packer.finish());
        assert!(packer.finish().is_none());
        let names: Vec<_> =
            packs.iter().filter(|(at, _)| at.len() == 1).map(|(at, _)| at[0]).collect();
        assert_eq!(names, *b"ix", "no key of a kind is below its first pack");
        assert!(packs.len() > 10 && packs.iter().all(|(_, pack)| pack.len() <= PACK_BYTES));
        assert!(packs.is_sorted());
        let read: Vec<_> = packs.iter().flat_map(|(at, pack)| read(at, pack).unwrap()).collect();
        assert_eq!(read, entries);
    }

    #[test]
    fn whoever_goes_on_with_a_pack_makes_the_same_ones() {
        let mut entries: Vec<Vec<u8>> =
            (0..100_u32).map(|n| [b"isubject/".as_slice(), &n.to_be_bytes()].concat()).collect();
        entries.extend((0..3_u8).map(|n| vec![b'x', n]));
        let mut whole = Packer::default();
        let mut packs: Vec<_> =
            entries.iter().filter_map(|entry| whole.push(entry.clone())).collect();
        packs.extend(whole.finish());
        for cut in 0..=entries.len() {
            let mut packer = Packer::default();
            let mut given: Vec<_> =
                entries[..cut].iter().filter_map(|entry| packer.push(entry.clone())).collect();
            let (mut again, from) = match packer.pending() {
                None => (Packer::default(), cut),
                Some((at, first)) => {
                    let from = entries.iter().position(|entry| entry == first).unwrap();
                    (Packer::at(at.to_vec()), from)
                }
            };
            given.extend(entries[from..].iter().filter_map(|entry| again.push(entry.clone())));
            given.extend(again.finish());
            assert_eq!(given, packs, "cut after {cut}");
        }
    }
}
