"""What libvirt runs at a guest's life events. `qemu.py` is complete in itself: it is copied to /etc/libvirt/hooks."""
