"""Settings of all tests: one thread, because the problems are tiny."""

import torch

torch.set_num_threads(1)
