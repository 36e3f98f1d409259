"""The failure lab: the real parts on this machine, faults one after the other, and oracles that watch."""
