"""Fault simulation: core, network, disk and exchange under one virtual clock and one seed."""
