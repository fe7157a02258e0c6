"""divhook: multi-tenant virtual networking for libvirt/KVM without encapsulation or controller."""

__version__ = "0.1.0"
