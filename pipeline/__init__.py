"""The whole pipeline as a graph of commands that meet through files.

plan      choices of the command line → stages
stage     one command, what it reads and leaves, and the fingerprint of what goes in
graph     graph.json and states/: what a run consists of, and what became of it
attempt   before and after one attempt at a stage, wherever it runs
execute   runs the stages in order on this machine and skips what is done
local     a stage as a process of this machine
cluster   what a stage gets on a cluster: configs/cluster/*.yaml
submit    the stages as SLURM jobs, each waiting for those that it needs
slurm     the batch script, and what SLURM knows of jobs
job       a stage inside its job: signals, requeues, restarts
snapshot  the copy of the code that jobs run
status    how a run is doing
progress  how far a stage has come, from what it logs
doctor    whether a run would work here
report/   the run on one page
summary   the plan of a dry run, and the table at the end
"""
