"""Monitoring: is what a server answers today still like the reference, and still right where outcomes came back?

It reads a prediction log and a model folder, never images, and imports neither torch nor the server.
"""
