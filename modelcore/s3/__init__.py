"""Objects on S3, or on a server that speaks its protocol: whole, checked, and gone on with after an interruption.

``modelcore.storage`` is what the rest of the library calls; it gives paths and addresses the same functions.
"""
