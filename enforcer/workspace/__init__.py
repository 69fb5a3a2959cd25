"""What a task changed in a workspace that is reviewed: kept apart, shown, and merged only when somebody says so."""
