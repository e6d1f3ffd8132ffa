"""Demonstrations: labelled examples of many tasks, and those of them that teach a model most about an input."""

from __future__ import annotations

from retrievers.demonstrations.bank import DemonstrationBank as DemonstrationBank
from retrievers.demonstrations.examples import Demonstration as Demonstration
from retrievers.demonstrations.examples import Selected as Selected
from retrievers.demonstrations.examples import read_demonstrations as read_demonstrations
from retrievers.demonstrations.formatting import UNIFIED_QA as UNIFIED_QA
from retrievers.demonstrations.formatting import Prompt as Prompt
from retrievers.demonstrations.formatting import Template as Template
from retrievers.demonstrations.formatting import write_chat as write_chat
from retrievers.demonstrations.formatting import write_prompt as write_prompt
