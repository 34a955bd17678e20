"""What a notebook calls: `import steval as sv`, then `sv.prepare`, `sv.finetune`, `sv.load`, `sv.score`, `sv.connect`.

Cells go in and come out as AnnData, results show themselves, and nothing is written unless a place is named. These are the
functions of the rooms below with arguments that suit a notebook; the command line calls the same ones.
"""
