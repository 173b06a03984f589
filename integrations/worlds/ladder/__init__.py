"""A ladder of environments that can be gamed, from agreeing to overwriting one's own reward.

Harmless and text only: a completion is parsed by one small grammar, the state is a dict, nothing is
executed. Four stages are trained on, the fifth is held out. After Denison et al. 2024, "Sycophancy
to Subterfuge" (arXiv:2406.10162).
"""
