
<% if alone %>
KERNEL_RESIDENT(<$ name $>, <$ threads $>, <$ resident $>, Params) { multiply_rows(p, block_x(), grid_x()); }
<% endif %>
