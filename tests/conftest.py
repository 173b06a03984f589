"""Settings of all tests: one thread, because the problems are tiny; Ctrl-C as in a terminal."""

import signal

import torch

# A shell starts background jobs with Ctrl-C ignored; the tests of Ctrl-C need Python's own handler.
signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)
