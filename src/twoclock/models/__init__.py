"""Models and policies: where a model comes from, the batched rollout engine, and what answers: local, remote, scripted.

Nothing is imported here, so that a policy behind an endpoint needs no torch.
"""

import os

# Large pages for large tensors, where the system grants them on request (Linux): decoding streams all weights at every
# step, and runs about a tenth faster so. PyTorch reads this at its first allocation, so it must be set before that.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
