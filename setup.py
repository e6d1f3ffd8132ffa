"""The compiled kernels; everything else is in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "retrievers.indexes._kernels",
            sources=[
                "indexes/_kernels.c",
                "indexes/_coarse.c",
                "indexes/_dense.c",
                "indexes/_dense_exact.c",
                "indexes/_dense_sieve.c",
                "indexes/_documents.c",
                "indexes/_graph.c",
                "indexes/_inverted.c",
                "indexes/_inverted_python.c",
                "indexes/_linear.c",
                "indexes/_lists.c",
                "indexes/_maxsim.c",
                "indexes/_maxsim_exact.c",
                "indexes/_maxsim_short.c",
                "indexes/_plaid.c",
                "indexes/_vocabulary.c",
                "indexes/_within.c",
            ],
            depends=[
                "indexes/_kernels.h",
                "indexes/_dense_sieve.h",
                "indexes/_heap.h",
                "indexes/_inverted.h",
                "indexes/_maxsim.h",
                "indexes/_within.h",
            ],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off"],
            py_limited_api=True,
            optional=True,  # without a compiler the numpy twins answer, more slowly
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
