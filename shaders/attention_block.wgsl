// attention_block: tiles of 32 x 32 that a workgroup of 64 invocations keeps in workgroup memory
//
// Invocation (row, column), each below 8, computes the scores of rows row + 8 i against columns column + 8 j (i, j below 4), and
// then elements 4 column .. 4 column + 3 of those rows in each chunk of 32 elements of a head. The vector weights[r][c] holds
// columns c, c + 8, c + 16, c + 24 of row r. Rows of a tile are nine vectors apart, so that neighbours meet in no bank.

#import attention

override PARTS: u32 = 16u;

const STRIDE = 9u;

var<workgroup> left: array<vec4<f32>, 288>;
var<workgroup> right: array<vec4<f32>, 288>;
var<workgroup> weights: array<vec4<f32>, 288>;
var<workgroup> partial: array<vec4<f32>, 64>;

// x[i] + products of row i of `left` with the four columns of `right`, over the chunk at hand
fn add_score_tile(x: mat4x4<f32>, row: u32, column: u32) -> mat4x4<f32> {
    var sum = x;
    for (var part = 0u; part < 8u; part += 1u) {
        let k = mat4x4<f32>(
            right[column * STRIDE + part],
            right[(column + 8u) * STRIDE + part],
            right[(column + 16u) * STRIDE + part],
            right[(column + 24u) * STRIDE + part],
        );
        sum[0] = add_scores(sum[0], k, left[row * STRIDE + part]);
        sum[1] = add_scores(sum[1], k, left[(row + 8u) * STRIDE + part]);
        sum[2] = add_scores(sum[2], k, left[(row + 16u) * STRIDE + part]);
        sum[3] = add_scores(sum[3], k, left[(row + 24u) * STRIDE + part]);
    }
    return sum;
}

// x[i] + sum over the columns of `weights` of row i times the rows of `right`
fn add_weighted_tile(x: mat4x4<f32>, row: u32, column: u32) -> mat4x4<f32> {
    var sum = x;
    for (var part = 0u; part < 8u; part += 1u) {
        let v = mat4x4<f32>(
            right[part * STRIDE + column],
            right[(part + 8u) * STRIDE + column],
            right[(part + 16u) * STRIDE + column],
            right[(part + 24u) * STRIDE + column],
        );
        sum[0] = add_weighted(sum[0], v, weights[row * STRIDE + part]);
        sum[1] = add_weighted(sum[1], v, weights[(row + 8u) * STRIDE + part]);
        sum[2] = add_weighted(sum[2], v, weights[(row + 16u) * STRIDE + part]);
        sum[3] = add_weighted(sum[3], v, weights[(row + 24u) * STRIDE + part]);
    }
    return sum;
}

fn put_weights(w: mat4x4<f32>, row: u32, column: u32) {
    weights[row * STRIDE + column] = w[0];
    weights[(row + 8u) * STRIDE + column] = w[1];
    weights[(row + 16u) * STRIDE + column] = w[2];
    weights[(row + 24u) * STRIDE + column] = w[3];
}
