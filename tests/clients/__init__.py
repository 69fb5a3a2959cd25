"""Real clients that must work behind the gate as they are, and say it in their own words when they are refused."""
