"""What is counted in a compiled program: collectives and operations, also inside loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.scale.hlo import Program

# As the TPU's compiler writes programs: two fusions of one asynchronous all-gather with the same
# channel, two reduce-scatters as fusions (which are two in spite of their common channel), and a
# loop whose condition has the number of iterations.
TPU = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%fused_computation.1 (p.1: bf16[16,64]) -> (bf16[16,64], bf16[64,64]) {
  %p.1 = bf16[16,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.1 = bf16[64,64]{1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=7, dimensions={0}
  ROOT %custom-call.1 = (bf16[16,64]{1,0}, bf16[64,64]{1,0}) custom-call(%p.1, %all-gather.1)
}

%async_collective_fusion.2 (p.2: bf16[16,64]) -> bf16[64,64] {
  %p.2 = bf16[16,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %all-gather.2 = bf16[64,64]{1,0:T(8,128)(2,1)} all-gather(%p.2), channel_id=7
}

%all-reduce-scatter.3 (p.3: bf16[64,64]) -> bf16[16,64] {
  %p.3 = bf16[64,64]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.3 = bf16[64,64]{1,0:T(8,128)(2,1)} all-reduce(%p.3), channel_id=1, to_apply=%add
  ROOT %slice.3 = bf16[16,64]{1,0:T(8,128)(2,1)} slice(%all-reduce.3), slice={[0:16], [0:64]}
}

%all-reduce-scatter.5 (p.5: bf16[32,64]) -> bf16[8,64] {
  %p.5 = bf16[32,64]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.5 = bf16[32,64]{1,0:T(8,128)(2,1)} all-reduce(%p.5), channel_id=1, to_apply=%add
  ROOT %slice.5 = bf16[8,64]{1,0:T(8,128)(2,1)} slice(%all-reduce.5), slice={[0:8], [0:64]}
}

%body (state: (s32[], bf16[16,64])) -> (s32[], bf16[16,64]) {
  %state = (s32[]{:T(128)}, bf16[16,64]{1,0:T(8,128)(2,1)S(1)}, /*index=2*/f32[8]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %w = bf16[16,64]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%state), index=1
  %start = (bf16[16,64]{1,0}, bf16[64,64]{1,0}) fusion(%w), kind=kCustom, calls=%fused_computation.1
  %done = bf16[64,64]{1,0} fusion(%w), kind=kCustom, calls=%async_collective_fusion.2
  %own = bf16[16,64]{1,0} fusion(%done), kind=kCustom, calls=%all-reduce-scatter.3
  %half = bf16[32,64]{1,0} slice(%done), slice={[0:32], [0:64]}
  %other = bf16[8,64]{1,0} fusion(%half), kind=kCustom, calls=%all-reduce-scatter.5
  ROOT %next = (s32[]{:T(128)}, bf16[16,64]{1,0}) tuple(%i, %own)
}

%condition (state: (s32[], bf16[16,64])) -> pred[] {
  %bound = s32[]{:T(128)} constant(5)
  %state.1 = (s32[]{:T(128)}, bf16[16,64]{1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%i.1, %bound), direction=LT
}

ENTRY %main (w.1: bf16[16,64], v: f32[3]) -> f32[3] {
  %w.1 = bf16[16,64]{1,0:T(8,128)(2,1)} parameter(0)
  %v = f32[3]{0:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %first = (s32[]{:T(128)}, bf16[16,64]{1,0}) tuple(%zero, %w.1)
  %loop = (s32[]{:T(128)}, bf16[16,64]{1,0}) while(%first), condition=%condition, body=%body
  ROOT %all-reduce.4 = f32[3]{0:T(128)} all-reduce(%v), channel_id=1, to_apply=%add
}
"""


def test_the_text_of_a_tpu_program_is_counted():
    found = {kind: tuple(one) for kind, one in Program(TPU).collectives().items()}
    layer = 64 * 64 * 2
    assert found == {
        "all-gather": (5, 5 * layer),
        "reduce-scatter": (10, 5 * layer * 3 / 2),
        "all-reduce": (1, 3 * 4),
    }


def test_a_loop_without_a_known_end_is_not_counted():
    found = Program(TPU.replace("direction=LT", "direction=NE")).collectives()
    assert np.isnan(found["all-gather"].count)
    assert found["all-reduce"].count == 1


def test_collectives_in_a_loop_count_per_iteration():
    """Each of 6 steps of a scan gathers a matrix, and the end sums up a vector of the devices."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    stacked, rows = NamedSharding(mesh, P(None, "data")), NamedSharding(mesh, P("data"))

    def function(ws, x):
        def body(x, w):
            w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
            return jnp.tanh(x @ w), None

        return jax.lax.scan(body, x, ws)[0].sum(0)

    ws = jax.ShapeDtypeStruct((6, 16, 16), jnp.float32, sharding=stacked)
    x = jax.ShapeDtypeStruct((24, 16), jnp.float32, sharding=rows)
    program = Program(jax.jit(function).lower(ws, x).compile().as_text())
    found = {kind: tuple(one) for kind, one in program.collectives().items()}
    assert found == {"all-gather": (6, 6 * 16 * 16 * 4), "all-reduce": (1, 16 * 4)}
    assert program.flops() == 6 * 2 * 3 * 16 * 16  # 3 of the 24 rows are on each device
    assert program.flops(loops=False) == 2 * 3 * 16 * 16


@pytest.mark.parametrize(
    ("strides", "padding", "dilation", "groups"),
    [((1, 1), "SAME", (1, 1), 1), ((2, 3), ((0, 2), (3, 1)), (2, 1), 2)],
)
def test_operations_are_those_of_xla(strides, padding, dilation, groups):
    """Without loops, XLA's own cost analysis counts the products of a convolution and a matmul."""

    def function(x, kernel, a, b):
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            lhs_dilation=dilation,
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y, jnp.einsum("bij,bkj->bik", a, b)

    shapes = (2, 9, 8, 4), (3, 2, 4 // groups, 6), (3, 4, 5), (3, 7, 5)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    lowered = jax.jit(function).lower(*arguments)
    counted = Program(lowered.compile().as_text()).flops()
    assert counted == pytest.approx(lowered.cost_analysis()["flops"], rel=1e-6)
