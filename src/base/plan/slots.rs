//! Which storage shares a slot: largest first, into the first slot whose tenants never live at the same time.
//!
//! A slot is a whole buffer, as wide as its largest tenant. A buffer bound for writing is exclusive within a dispatch, and
//! lifetimes include both ends, so what one node reads and writes never shares a slot.

use super::Storage;

/// Slot of each storage, and bytes of each slot.
pub fn assign(storages: &[Storage]) -> (Vec<usize>, Vec<u64>) {
    let mut by_size: Vec<usize> = (0..storages.len()).collect();
    by_size.sort_by_key(|&i| (std::cmp::Reverse(storages[i].size_bytes), storages[i].first, i));
    let mut slot_of = vec![0; storages.len()];
    let mut tenants: Vec<Vec<usize>> = vec![];
    let mut bytes: Vec<u64> = vec![];
    for i in by_size {
        let free = |slot: &Vec<usize>| slot.iter().all(|&other| !overlap(&storages[i], &storages[other]));
        let slot = tenants.iter().position(free).unwrap_or_else(|| {
            tenants.push(vec![]);
            bytes.push(storages[i].size_bytes);
            tenants.len() - 1
        });
        tenants[slot].push(i);
        slot_of[i] = slot;
    }
    (slot_of, bytes)
}

fn overlap(a: &Storage, b: &Storage) -> bool {
    a.first <= b.last && b.first <= a.last
}

#[cfg(test)]
mod tests {
    use super::super::lifetimes::Owner;
    use super::*;
    use crate::tensor::random::Stream;

    fn random_storages(stream: &mut Stream, count: u64) -> Vec<Storage> {
        (0..count)
            .map(|i| {
                let first = stream.below(40) as usize;
                let last = first + stream.below(12) as usize;
                let size_bytes = 4 * (1 + stream.below(500));
                Storage { size_bytes, first, last, owner: Owner::Value(i as usize) }
            })
            .collect()
    }

    #[test]
    fn two_values_alive_together_never_share_a_slot() {
        let mut stream = Stream::new(&[40]);
        for round in 0..200 {
            let storages = random_storages(&mut stream, 1 + round % 60);
            let (slot_of, bytes) = assign(&storages);
            for (i, a) in storages.iter().enumerate() {
                assert!(bytes[slot_of[i]] >= a.size_bytes);
                for (j, b) in storages.iter().enumerate().skip(i + 1) {
                    let together = (a.first..=a.last).any(|t| (b.first..=b.last).contains(&t));
                    assert!(
                        !together || slot_of[i] != slot_of[j],
                        "{a:?} and {b:?} share slot {}",
                        slot_of[i]
                    );
                }
            }
        }
    }

    #[test]
    fn slots_take_no_more_than_keeping_everything_and_no_less_than_the_fullest_moment() {
        let mut stream = Stream::new(&[41]);
        for _ in 0..100 {
            let storages = random_storages(&mut stream, 50);
            let (_, bytes) = assign(&storages);
            let total: u64 = bytes.iter().sum();
            let alive = |t: usize| {
                let lives = storages.iter().filter(|s| (s.first..=s.last).contains(&t));
                lives.map(|s| s.size_bytes).sum::<u64>()
            };
            let fullest = (0..60).map(alive).max().unwrap_or(0);
            assert!(total >= fullest && total <= storages.iter().map(|s| s.size_bytes).sum());
        }
    }
}
