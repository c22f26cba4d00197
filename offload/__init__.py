"""Measure the machine, plan, place, keep resident. Imports nothing of localr1."""
