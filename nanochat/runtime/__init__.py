"""The room at the bottom: device, number format, cores and process group, which every process sets once."""
