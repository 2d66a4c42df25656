"""Many processes at work on one study: who has which trial, what happens when one is gone, and who looks on.

A *worker* asks for a trial, evaluates it and tells the outcome, until the study is at its end. The
*coordinator*, the process that a user starts, may have workers of its own; others join from other machines.
"""
