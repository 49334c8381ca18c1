//! Kernels of the reductions: who sums what, and in how many launches.

use super::{Kind, split};
use crate::ops::launch::{Bind, Caps, Kernel, Launch, Variant};
use crate::ops::slice::wide;
use crate::tensor::{DType, Type};

/// Invocations per workgroup where each has an output of its own.
const LANES: usize = 64;
/// Rows up to this long are not worth a workgroup each.
const SHORT: usize = 32;

/// One launch over x [outer, length, inner], each `chunk` of the length reduced by itself.
#[derive(Clone, Copy)]
struct Stage {
    from: (Bind, DType),
    to: (Bind, DType),
    sizes: [usize; 3],
    chunk: usize,
    is_maximum: bool,
    divisor: usize,
}

pub(super) fn variants(kind: Kind, axis: usize, x: &Type, y: &Type, caps: &Caps) -> Vec<Variant> {
    let sizes = split(&x.shape, axis);
    let [outer, length, inner] = sizes;
    let whole = Stage {
        from: (Bind::Input(0), x.dtype),
        to: (Bind::Output(0), y.dtype),
        sizes,
        chunk: length,
        is_maximum: kind == Kind::Maximum,
        divisor: if kind == Kind::Mean { length } else { 1 },
    };
    let mut ranked = vec![(0, Variant::single("reduce_lane", whole.lane()))];
    let outputs = outer * inner;
    if inner == 1 {
        let [row, group] = if caps.is_cpu || length <= SHORT { [2, 1] } else { [1, 2] };
        ranked.push((row, Variant::single("reduce_row", whole.row())));
        ranked.push((group, Variant::single("reduce_group", whole.group())));
    }
    let chunk = chunk_of(length, inner, caps);
    let chunks = length.div_ceil(chunk);
    if chunks > 1 {
        let scratch = (Bind::Scratch(0), DType::F32);
        let partial = Stage { to: scratch, chunk, divisor: 1, ..whole };
        let finish = Stage { from: scratch, sizes: [outer, chunks, inner], chunk: chunks, ..whole };
        let launches = match (inner, caps.is_cpu) {
            (1, true) => vec![partial.row(), finish.row()],
            (1, false) => vec![partial.group(), finish.group()],
            _ => vec![partial.lane(), finish.lane()],
        };
        // What keeps a device busy: a CPU driver's threads take a workgroup each, a GPU wants thousands of lanes.
        let (busy, long) = if caps.is_cpu { (LANES / 2, 1 << 17) } else { (1 << 14, 1 << 15) };
        let few = outputs < busy && length * outputs > long;
        let name = "reduce_split".to_string();
        let scratch = vec![(outputs * chunks * 4) as u64];
        ranked.push((if few { 3 } else { -1 }, Variant { name, launches, scratch }));
    }
    ranked.sort_by_key(|&(rank, _)| std::cmp::Reverse(rank));
    ranked.into_iter().map(|(_, variant)| variant).collect()
}

/// Elements of the axis that one chunk takes: near the root of the length, so that both launches have much the same to do; a
/// multiple of four, so that rows can be read in fours.
fn chunk_of(length: usize, inner: usize, caps: &Caps) -> usize {
    let root = (length as f64).sqrt().ceil() as usize;
    let least = match (inner, caps.is_cpu) {
        (1, false) => 1024,
        (1, true) => 256,
        _ => 16,
    };
    root.max(least).next_multiple_of(4)
}

impl Stage {
    fn chunks(&self) -> usize {
        self.sizes[1].div_ceil(self.chunk)
    }

    fn kernel(&self, shader: &'static str, width: usize) -> Kernel {
        let types = match width {
            4 => "alias PackIn = vec4<In>;\nalias PackOut = vec4<Out>;\nalias V = vec4<f32>;",
            _ => "alias PackIn = In;\nalias PackOut = Out;\nalias V = f32;",
        };
        Kernel::new(shader)
            .constant("MAXIMUM", self.is_maximum as u32)
            .retype("In", self.from.1)
            .retype("Out", self.to.1)
            .paste("WIDTH", types)
    }

    /// One invocation per output and chunk, neighbours along the inner axis.
    fn lane(self) -> Launch {
        let [outer, length, inner] = self.sizes;
        let width = wide(&[inner]);
        let count = outer * self.chunks() * inner / width;
        let kernel = self.kernel("reduce", width).constant("LANES", LANES as u32);
        Launch::new(kernel, [self.from.0, self.to.0], count.div_ceil(LANES))
            .param("count", count)
            .param("length", length)
            .param("inner", inner / width)
            .param("chunk", self.chunk)
            .param("chunks", self.chunks())
            .param("divisor", self.divisor as f32)
    }

    /// One invocation per contiguous row and chunk.
    fn row(self) -> Launch {
        let count = self.sizes[0] * self.chunks();
        self.contiguous("row", LANES, count.div_ceil(LANES))
    }

    /// One workgroup per contiguous row and chunk.
    fn group(self) -> Launch {
        let lanes = if self.chunk <= 512 { 64 } else { 256 };
        self.contiguous("group", lanes, self.sizes[0] * self.chunks())
    }

    fn contiguous(self, entry: &'static str, lanes: usize, groups: usize) -> Launch {
        let [outer, length, _] = self.sizes;
        let width = if self.chunks() == 1 { wide(&[length]) } else { wide(&[length, self.chunk]) };
        let fold = match width {
            4 => "fn fold(v: V) -> f32 { return join(join(v.x, v.y), join(v.z, v.w)); }",
            _ => "fn fold(v: V) -> f32 { return v; }",
        };
        let kernel =
            self.kernel("reduce_row", width).entry(entry).constant("LANES", lanes as u32).paste("FOLD", fold);
        Launch::new(kernel, [self.from.0, self.to.0], groups)
            .param("count", outer * self.chunks())
            .param("length", length / width)
            .param("chunk", self.chunk.div_ceil(width))
            .param("chunks", self.chunks())
            .param("divisor", self.divisor as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(shape: &[usize], axis: usize, is_cpu: bool) -> String {
        let mut kept = shape.to_vec();
        kept[axis] = 1;
        let caps = Caps { is_cpu, ..Caps::portable() };
        let (x, y) = (Type::f32(shape), Type::f32(kept));
        variants(Kind::Sum, axis, &x, &y, &caps)[0].name.clone()
    }

    #[test]
    fn few_long_sums_are_split_and_many_are_not() {
        assert_eq!(first(&[1_000_000], 0, false), "reduce_split");
        assert_eq!(first(&[1_000_000], 0, true), "reduce_split");
        assert_eq!(first(&[768, 512], 0, false), "reduce_split");
        assert_eq!(first(&[8, 100_000], 0, false), "reduce_lane");
        assert_eq!(first(&[4096, 768], 1, false), "reduce_group");
        assert_eq!(first(&[4096, 768], 1, true), "reduce_row");
        assert_eq!(first(&[4096, 8], 1, false), "reduce_row");
    }

    #[test]
    fn chunks_cover_the_axis_without_an_empty_one() {
        for is_cpu in [false, true] {
            let caps = Caps { is_cpu, ..Caps::portable() };
            for length in [1, 15, 16, 17, 255, 257, 1024, 1025, 999_983] {
                for inner in [1, 3] {
                    let chunk = chunk_of(length, inner, &caps);
                    let chunks = length.div_ceil(chunk);
                    assert!(chunks * chunk >= length && (chunks - 1) * chunk < length);
                }
            }
        }
    }
}
