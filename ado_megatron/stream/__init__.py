"""From weights to samples: whole-number rows, a table that loaders read, and the dataset they read it through.

What comes in: the weights of each block, and the length of every dataset. What goes out: for any sample index of the
run, the dataset and the sample to read. apportion.py turns weights into rows of counts (quota.py the weights into
quotas, constant_weights.py and row_layout.py many rows fast), schedule.py keeps rows in shared memory (shared_table.py)
and finds samples in them (block.py, permutation.py), blended_dataset.py is what a DataLoader takes:

    rows_SxC, credit_C = apportion_rows([0.7, 0.3], block_size=256, num_rows=100, credit_C=np.zeros(2))
    schedule = Schedule(lengths_C=[len(code), len(web)], block_size=256, num_blocks=100, seed=1)
    schedule.publish(0, rows_SxC)
    item = AdaptiveBlend([code, web], schedule)[0]

Import from the modules: a loader worker that wants the sample key alone (sample_key.py) should not pay for the rest.
"""
