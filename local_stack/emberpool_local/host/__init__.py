"""What the local stack needs of the machine: packages, folders, ports, and children that never outlive us."""
