"""The channel ``proxy``: how strongly experts shift the logits of each task's answers. See :mod:`.channel`."""

from twoclock.fast.proxy.channel import OpenSides, ProxyChannel
from twoclock.fast.proxy.config import ProxyConfig, ShiftConfig
from twoclock.fast.proxy.state import ProxyState

__all__ = ["OpenSides", "ProxyChannel", "ProxyConfig", "ProxyState", "ShiftConfig"]
