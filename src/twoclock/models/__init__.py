"""Models and policies: where a model comes from, the batched rollout engine, and what answers: local, remote, scripted.

Nothing is imported here, so that a policy behind an endpoint needs no torch.
"""
