"""The free tier of AWS: Terraform's modules, what they cost, and a check before anything is made."""
