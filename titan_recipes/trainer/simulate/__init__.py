"""Simulation: one rank of a job of any size on this CPU, its memory and its collectives.

The trainer itself runs, in a process group without peers and on tensors without data:

    fake_world     the process group, and the device that fills no tensor
    memory         how much is alive, and what it is
    collectives    what is sent, over which axis of the mesh
    measure        real steps of the trainer under both; also over real ranks, to compare
    rank           all of it for one rank, in a process of its own
    report         the tables
"""
