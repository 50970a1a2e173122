"""The whole pipeline as a graph of commands that meet through files.

plan      choices of the command line → stages
stage     one command, what it reads and leaves, and the fingerprint of what goes in
graph     graph.json, which remembers what became of each stage, and the run folder's lock
execute   runs the stages in order and skips what is done
local     a stage as a process of this machine
report/   the run on one page
summary   the plan of a dry run, and the table at the end
"""
