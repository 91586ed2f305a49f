"""Settings of JAX that users make globally change no verb: entries by settings."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import settings_of_jax

pytestmark = pytest.mark.thinned(3)

SETTINGS = (
    "jax_numpy_rank_promotion=raise",
    "jax_numpy_dtype_promotion=strict",
    "jax_debug_nans=True",
    "jax_debug_infs=True",
    "jax_check_tracer_leaks=True",
    "jax_debug_key_reuse=True",
    "jax_default_matmul_precision=BF16_BF16_F32",
    "jax_enable_x64=True",
    "mesh=set",
)
FAST = ("recover ActivationWeighted", "update", "energy", "draw", "products", "observe")


@pytest.mark.parametrize("entry", FAST)
def test_all_settings_at_once(entry):
    settings = (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
        jax.debug_nans(True),
        jax.debug_infs(True),
        jax.check_tracer_leaks(True),
        jax.debug_key_reuse(True),
        jax.default_matmul_precision("highest"),
    )
    with contextlib.ExitStack() as stack:
        for setting in settings:
            stack.enter_context(setting)
        settings_of_jax.computed(settings_of_jax.ENTRIES[entry])


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_entry_under_every_setting(setting):
    done = subprocess.run(
        [sys.executable, settings_of_jax.__file__, setting],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parent,
        timeout=900,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
