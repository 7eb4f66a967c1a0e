"""What the scripts of train/ share beside their loops: run folder, averages, resuming, sample logging."""
