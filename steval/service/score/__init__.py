"""`/score`: uploads, jobs on disk, the process that runs one."""
