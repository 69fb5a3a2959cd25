"""What one sandbox is and has in its worker: its task and policy, the limits of its rules, its descriptors."""
