"""The training step of each method, as a program that is compiled but never run."""

import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

import flatreg
from benchmarks.common import methods
from benchmarks.scale.arithmetic import PLAIN, REVISIT
from benchmarks.scale.devices import CPU, Chips
from benchmarks.scale.hlo import Program
from benchmarks.scale.layout import Layout
from benchmarks.scale.networks import Problem, Sizes, build
from flatreg.linen import TrainState, classification_loss, make_train_step

LEARNING_RATE = 1e-3  # which decides nothing here


def check(method: str) -> None:
    """Raises `UsageError` if the command does not know the method."""
    if method != REVISIT:
        methods.parse(method, PLAIN)


def measure(sizes: Sizes, chips: Chips, layout: str, method: str) -> dict[str, Any]:
    """Compiles a training step and returns what it needs.

    Args:
      sizes: the network.
      chips: what to compile for.
      layout: `data` or `fsdp`.
      method: a method as `benchmarks.compare` names it, or `revisit`.

    Returns:
      The sizes and counts of the program, per chip. If the program does not fit into the chip's
      memory, the compiler says how much it needs, and the other values are None. Times are
      CPU time, which other work on the machine does not change. `alive_bytes` is the largest size
      of the temporary arrays that exist at the same time. The temporary memory also has the gaps
      between them. The compiler for CPUs does not report it.
    """
    placed = Layout(layout, chips.mesh)
    begin = time.process_time()
    lowered, parameters = _lowered(build(sizes, placed), placed, method)
    traced = time.process_time()
    found: dict[str, Any] = {
        "chips": chips.mesh.size,
        "parameters": parameters,
        "memory_bytes": chips.memory,
        "trace_seconds": traced - begin,
    }
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed, memory = _out_of_memory(error)
        return found | {"compiles": False, "needed_bytes": needed, "memory_bytes": memory}
    memory = compiled.memory_analysis()
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = None if chips.name.startswith(CPU) else getattr(memory, "peak_memory_in_bytes", None)
    program = Program(compiled.as_text())
    return found | {
        "compiles": True,
        "needed_bytes": arguments + results + temporary + memory.generated_code_size_in_bytes,
        "compile_seconds": time.process_time() - traced,
        "argument_bytes": arguments,
        "temporary_bytes": temporary,
        "alive_bytes": peak and peak - arguments,
        "flops": program.flops(),
        "bytes_accessed": (compiled.cost_analysis() or {}).get("bytes accessed"),
        "collectives": {
            kind.replace("-", "_"): found._asdict()
            for kind, found in sorted(program.collectives().items())
        },
    }


def _lowered(problem: Problem, layout: Layout, method: str) -> tuple[Any, int]:
    """Returns the training step as XLA's compiler gets it, and the number of parameters."""
    optimizer, fraction = optax.adamw(LEARNING_RATE), 1.0
    if method == REVISIT:
        tx: Any = flatreg.revisit(optimizer)
    else:
        (parsed,) = methods.parse(method, PLAIN)
        tx, fraction = optax.chain(parsed.transform, optimizer), parsed.ascent_fraction
    batch = problem.inputs, problem.labels

    def init(key: jax.Array) -> TrainState:
        example = jnp.zeros(problem.inputs.shape, problem.inputs.dtype)
        state = TrainState.init(problem.model, tx, key, example, train=False)
        return state.replace(apply_fn=problem.apply_fn)

    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = layout.of_state(shapes)
    state = jax.tree.map(lambda x, s: x.update(sharding=s), shapes, shardings)
    step = jax.jit(
        make_train_step(classification_loss, ascent_fraction=fraction),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    parameters = sum(w.size for w in jax.tree.leaves(shapes.params))
    return step.lower(state, batch), parameters


def _out_of_memory(error: Exception) -> tuple[float, float]:
    """Returns the bytes that the program needs and has, from the error of the TPU's compiler.

    If the temporary memory alone does not fit, the compiler names no other memory.
    """
    number = r"([\d.]+)([KMGT])"
    found = re.search(rf"Used {number} of {number} hbm", str(error)) or re.search(
        rf"HLO temporaries \({number}\) exceeds available HBM \({number}\)", str(error)
    )
    if found is None:
        raise error
    needed, unit, memory, memory_unit = found.groups()
    units = {letter: 1024.0**power for power, letter in enumerate("KMGT", 1)}
    return float(needed) * units[unit], float(memory) * units[memory_unit]
