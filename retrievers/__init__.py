"""Small retrievers, the indexes they need, and one search call.

>>> from retrievers import Retriever, Document
>>> retriever = Retriever.build("idx", [Document("a", "undo the last commit")])
>>> retriever.search("undo a commit", k=5)

Names are loaded when they are first used: importing this package imports none of its dependencies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from retrievers.lazy import lazily

if TYPE_CHECKING:
    from retrievers.demonstrations import Demonstration as Demonstration
    from retrievers.demonstrations import DemonstrationBank as DemonstrationBank
    from retrievers.demonstrations import Prompt as Prompt
    from retrievers.demonstrations import Selected as Selected
    from retrievers.demonstrations import Template as Template
    from retrievers.demonstrations import read_demonstrations as read_demonstrations
    from retrievers.demonstrations import write_chat as write_chat
    from retrievers.demonstrations import write_prompt as write_prompt
    from retrievers.demonstrations.classifier import DemonstrationClassifier as DemonstrationClassifier
    from retrievers.documents import Document as Document
    from retrievers.documents import Hit as Hit
    from retrievers.encoders import Encoder as Encoder
    from retrievers.encoders import load_encoder as load_encoder
    from retrievers.encoders.dense import DenseEncoder as DenseEncoder
    from retrievers.encoders.lexical import LexicalEncoder as LexicalEncoder
    from retrievers.encoders.multi_vector import MultiVectorEncoder as MultiVectorEncoder
    from retrievers.encoders.sparse import SparseEncoder as SparseEncoder
    from retrievers.errors import RetrieversError as RetrieversError
    from retrievers.evaluation import Evaluation as Evaluation
    from retrievers.evaluation import evaluate as evaluate
    from retrievers.explanations import Contribution as Contribution
    from retrievers.explanations import Explanation as Explanation
    from retrievers.fusion import Fusion as Fusion
    from retrievers.fusion import fuse as fuse
    from retrievers.hybrid import HybridRetriever as HybridRetriever
    from retrievers.indexes.verification import verify as verify
    from retrievers.partial import PartialSearch as PartialSearch
    from retrievers.queries import read_queries as read_queries
    from retrievers.readers import read_beir as read_beir
    from retrievers.readers import read_csv as read_csv
    from retrievers.readers import read_documents as read_documents
    from retrievers.readers import read_folder as read_folder
    from retrievers.readers import read_jsonl as read_jsonl
    from retrievers.rerankers import CrossEncoderReranker as CrossEncoderReranker
    from retrievers.rerankers import MultiVectorReranker as MultiVectorReranker
    from retrievers.rerankers import Reranker as Reranker
    from retrievers.retriever import Retriever as Retriever
    from retrievers.runs import read_qrels as read_qrels
    from retrievers.runs import read_run as read_run
    from retrievers.runs import write_run as write_run
    from retrievers.tuning import Tuned as Tuned
    from retrievers.tuning import tune as tune
    from retrievers.vectors import TokenVectors as TokenVectors

__version__ = "0.1.0"

_HOMES = {
    "Contribution": "explanations",
    "CrossEncoderReranker": "rerankers",
    "Demonstration": "demonstrations",
    "DemonstrationBank": "demonstrations",
    "DemonstrationClassifier": "demonstrations.classifier",
    "DenseEncoder": "encoders.dense",
    "Document": "documents",
    "Encoder": "encoders",
    "Evaluation": "evaluation",
    "Explanation": "explanations",
    "Fusion": "fusion",
    "Hit": "documents",
    "HybridRetriever": "hybrid",
    "LexicalEncoder": "encoders.lexical",
    "MultiVectorEncoder": "encoders.multi_vector",
    "MultiVectorReranker": "rerankers",
    "PartialSearch": "partial",
    "Prompt": "demonstrations",
    "Reranker": "rerankers",
    "Retriever": "retriever",
    "RetrieversError": "errors",
    "Selected": "demonstrations",
    "SparseEncoder": "encoders.sparse",
    "Template": "demonstrations",
    "TokenVectors": "vectors",
    "Tuned": "tuning",
    "evaluate": "evaluation",
    "fuse": "fusion",
    "load_encoder": "encoders",
    "read_beir": "readers",
    "read_csv": "readers",
    "read_demonstrations": "demonstrations",
    "read_documents": "readers",
    "read_folder": "readers",
    "read_jsonl": "readers",
    "read_qrels": "runs",
    "read_queries": "queries",
    "read_run": "runs",
    "tune": "tuning",
    "verify": "indexes.verification",
    "write_chat": "demonstrations",
    "write_prompt": "demonstrations",
    "write_run": "runs",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazily(__name__, _HOMES, globals())
