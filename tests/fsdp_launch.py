"""`python -m integrations ...` with FSDP2 on a CPU, for the tests; started by torchrun."""

import sys

from integrations.__main__ import main
from tests.distributed.trainers import _let_accelerate_shard_on_cpu

_let_accelerate_shard_on_cpu()
sys.exit(main(sys.argv[1:]))
