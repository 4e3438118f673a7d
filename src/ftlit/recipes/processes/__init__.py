"""The processes of a run: those of a launcher, that of a job of a sweep, and the state of this one."""
