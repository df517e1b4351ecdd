"""A first version of the network, written once and never optimised: what the benchmarks compare against.

Plain fp32, every slot of every site computed whether a frame fills it or not, attention spelled out, contiguous NCHW,
keys and values made per frame at full resolution, every pixel decoded. Same architecture and sizes as `aefcli.model`,
from which it imports nothing; its encoder takes the same weights and gives the same features.
"""
