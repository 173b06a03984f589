"""The ways of taking a step in which every fault is tried."""

from hypothesis import strategies as st

from benchmarks.fault_job import SETTINGS, Setting

settings_of_steps = st.sampled_from(SETTINGS)


def name_of(setting: Setting) -> str:
    """The setting as a test id."""
    words = [f"{k}={v}" for k, v in setting.options]
    return " ".join([setting.how, setting.dtype, setting.difference, *words])
