"""Moves: live migration of a guest NIC from one host to another, without IO."""
