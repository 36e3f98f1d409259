"""The functions that the failure lab runs in its execution environments, as a user would write them."""
