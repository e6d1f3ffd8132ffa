"""Demonstrations: labelled examples of many tasks, and those of them that teach a model most about an input."""

from __future__ import annotations

from retrievers.demonstrations.bank import DemonstrationBank as DemonstrationBank
from retrievers.demonstrations.examples import Demonstration as Demonstration
from retrievers.demonstrations.examples import Selected as Selected
from retrievers.demonstrations.examples import read_demonstrations as read_demonstrations
