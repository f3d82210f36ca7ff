"""ubond: network bonding in userspace, for kernels without the bonding module."""

__version__ = "0.1.0"
